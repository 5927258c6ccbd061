"""Pages of a report: its sections, tables and charts, as Markdown, as one HTML page and on a terminal."""
