"""From a selected network to a file that a device runs, proved equal to the torch model.

The commands are `python -m export.onnx`, `export.targets`, `export.benchmark`, `export.bundle` and
`export.demo`. From Python, for any torch classifier:

    import torch
    import export

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5)).eval()
    images = torch.randn(8, 3, 8, 8)
    manifest = export.to_onnx(net, "net.onnx", "cpu", images=images)
    parity = export.verify_file("net.onnx", net, images)
    rows = export.benchmark_files(["net.onnx"], rounds=2, seconds=0.01)
    print(manifest.bytes, parity.relative_error, rows[0]["wall_p50"])
"""

from typing import TYPE_CHECKING

from engine.command.start import start
from engine.lazy import lazy_names

if TYPE_CHECKING:
    from export.api import to_onnx, verify_file
    from export.bake import Bake, CenterCrop
    from export.benchmark.measure import benchmark_files
    from export.bundle.write import write_bundle
    from export.manifest import Manifest, read_manifest
    from export.targets import find_target
    from export.verify import Parity

__all__ = [
    "Bake",
    "CenterCrop",
    "Manifest",
    "Parity",
    "benchmark_files",
    "find_target",
    "read_manifest",
    "to_onnx",
    "verify_file",
    "write_bundle",
]

start()

__getattr__ = lazy_names(
    __name__,
    {
        "Bake": "export.bake",
        "CenterCrop": "export.bake",
        "Manifest": "export.manifest",
        "Parity": "export.verify",
        "benchmark_files": "export.benchmark.measure",
        "find_target": "export.targets",
        "read_manifest": "export.manifest",
        "to_onnx": "export.api",
        "verify_file": "export.api",
        "write_bundle": "export.bundle.write",
    },
)
