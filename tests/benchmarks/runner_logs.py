"""What native runners print, verbatim but for the figures.

Of ``executor_runner`` of ExecuTorch 1.x and before, from its source and its documentation, and of
``onnxruntime_perf_test`` from ONNX Runtime's and Arm's documentation.
"""

EXECUTORCH = """\
I 00:00:00.003318 executorch:executor_runner.cpp:447] Resetting threadpool with num threads = 2
I 00:00:00.043703 executorch:executor_runner.cpp:565] Model file 0-forward.pte is loaded.
I 00:00:00.043720 executorch:executor_runner.cpp:575] Using method forward
I 00:00:00.043733 executorch:executor_runner.cpp:649] Setting up CPU planned buffer 0, size 9936896.
I 00:00:00.093912 executorch:executor_runner.cpp:718] Model loaded in 29.490000 ms.
I 00:00:00.163912 executorch:executor_runner.cpp:880] Iteration 1 of 8: 41.500000 ms
I 00:00:00.173912 executorch:executor_runner.cpp:880] Iteration 2 of 8: 6.250000 ms
I 00:00:00.183912 executorch:executor_runner.cpp:880] Iteration 3 of 8: 5.250000 ms
I 00:00:00.193912 executorch:executor_runner.cpp:880] Iteration 4 of 8: 4.000000 ms
I 00:00:00.203912 executorch:executor_runner.cpp:880] Iteration 5 of 8: 3.000000 ms
I 00:00:00.213912 executorch:executor_runner.cpp:880] Iteration 6 of 8: 5.000000 ms
I 00:00:00.223912 executorch:executor_runner.cpp:880] Iteration 7 of 8: 2.000000 ms
I 00:00:00.233912 executorch:executor_runner.cpp:880] Iteration 8 of 8: 6.000000 ms
I 00:00:00.233950 executorch:executor_runner.cpp:889] Model executed successfully 8 time(s) in 73.000000 ms.
I 00:00:00.233960 executorch:executor_runner.cpp:893] 1 outputs:
OutputX 0: tensor(sizes=[1, 1], [0.401872])
"""
BEFORE_ITERATIONS = """\
I 00:00:00.051509 executorch:executor_runner.cpp:218] Model file model.pte is loaded.
I 00:00:00.051531 executorch:executor_runner.cpp:227] Using method forward
I 00:00:00.091459 executorch:executor_runner.cpp:340] Model executed successfully 10 time(s) in 29.048830 ms.
I 00:00:00.091477 executorch:executor_runner.cpp:349] 1 outputs:
"""
ONNXRUNTIME = """\
Setting intra_op_num_threads to 1
Session creation time cost: 0.217932 s
First inference time cost: 19 ms
Total inference time cost: 0.49481 s
Total inference requests: 50
Average inference time cost total: 9.896200 ms
Total inference run time: 0.494854 s
Number of inferences per second: 101.04
Avg CPU usage: 11 %
Peak working set size: 27262976 bytes
Avg CPU usage:11
Peak working set size:27262976
Runs:50
Min Latency: 0.00958204 s
Max Latency: 0.0101519 s
P50 Latency: 0.00995086 s
P90 Latency: 0.0101019 s
P95 Latency: 0.0101519 s
P99 Latency: 9.9e-03 s
P999 Latency: 0.0101519 s
"""
WITHOUT_STATISTICS = """\

Session creation time cost: 0.0102016 s
First inference time cost: 2 ms
Total inference time cost: 0.185739 s
Total inference requests: 100
Average inference time cost: 1.85739 ms
Total inference run time: 0.18581 s
Number of inferences per second: 538.184
Avg CPU usage: 96 %
Peak working set size: 36696064 bytes
"""
