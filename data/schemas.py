"""Columns of a ClipStore's Parquet files: one row per clip, and one row per input file. See docs/files.md."""

import pyarrow as pa

CLIP_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("video_id", pa.string()),
        ("track", pa.int32()),
        ("label", pa.int8()),
        ("method", pa.string()),
        ("split", pa.string()),
        ("identities", pa.list_(pa.string())),
        ("start_frame", pa.int32()),
        ("fps", pa.float32()),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("detector_score", pa.list_(pa.float32())),
        ("valid", pa.list_(pa.bool_())),
        ("rgb", pa.list_(pa.binary())),
        ("depth", pa.list_(pa.binary())),
        ("flow", pa.list_(pa.binary())),
    ]
)
VIDEO_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("path", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("label", pa.int8()),
        ("method", pa.string()),
        ("split", pa.string()),
        ("identities", pa.list_(pa.string())),
        ("fps", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("frames_without_face", pa.int32()),
        ("clips", pa.int32()),
        ("forged_clips", pa.int32()),
        ("clips_sha256", pa.string()),
    ]
)
