"""What export changes in an ONNX graph: operators that a device lacks, norms that are left, and 8 bits."""
