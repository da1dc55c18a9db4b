"""torchvision beside a CPU torch: each case in its own process, because an import happens once."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_python(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(folder) for folder in (*folders, ROOT))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def fake_torchvision(folder: Path, body: str) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(body)
    return folder


def test_models_are_usable_with_the_installed_torchvision() -> None:
    result = run_python(
        "from shared.torchvision_cpu import import_torchvision\n"
        "torchvision = import_torchvision()\n"
        "import torch, torchvision.transforms.v2\n"
        "assert import_torchvision() is torchvision\n"
        "assert torchvision.extension is not None\n"
        "print(torchvision.models.resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape[1])\n"
    )
    assert result.stdout.strip() == "1000", result.stderr


def test_a_healthy_torchvision_is_left_alone(tmp_path: Path) -> None:
    folder = fake_torchvision(tmp_path, "healthy = True\n")
    result = run_python(
        "from shared.torchvision_cpu import import_torchvision\n"
        "import shared.torchvision_cpu as ours, torch\n"
        "assert import_torchvision().healthy\n"
        "assert ours._declared is None\n"
        "print(hasattr(torch.ops.torchvision, 'nms'))\n",
        folder,
    )
    assert result.stdout.strip() == "False", result.stderr


def test_the_known_fault_is_mended_and_the_import_repeated(tmp_path: Path) -> None:
    body = (
        "import torch\n"
        "from torchvision import part\n"
        "if not hasattr(torch.ops.torchvision, 'nms'):\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    folder = fake_torchvision(tmp_path, body)
    (folder / "torchvision" / "part.py").write_text("")
    result = run_python(
        "from shared.torchvision_cpu import import_torchvision\n"
        "torchvision = import_torchvision()\n"
        "import torch\n"
        "print(torchvision.part.__name__, hasattr(torch.ops.torchvision, 'qnms'))\n",
        folder,
    )
    assert result.stdout.strip() == "torchvision.part True", result.stderr


def test_any_other_fault_is_raised_as_it_is(tmp_path: Path) -> None:
    folder = fake_torchvision(tmp_path, "raise RuntimeError('something else')\n")
    result = run_python(
        "from shared.torchvision_cpu import import_torchvision\n"
        "import torch\n"
        "try:\n"
        "    import_torchvision()\n"
        "except RuntimeError as fault:\n"
        "    print(fault, hasattr(torch.ops.torchvision, 'nms'))\n",
        folder,
    )
    assert result.stdout.strip() == "something else False", result.stderr
