"""The TensorRT backend: one engine per segment, on NVIDIA GPUs and Jetson."""
