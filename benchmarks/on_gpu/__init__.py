"""The parts of `benchmarks/gpu_day.py`: everything that is to be measured on the first GPU at hand."""
