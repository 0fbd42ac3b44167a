"""The same network calls in less time: layers a GPU is fast at, compilation, CUDA graphs, and what a run will take."""
