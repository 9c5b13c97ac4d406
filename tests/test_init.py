"""The package itself: what it exports, and that importing it is fast."""

import subprocess
import sys

import pytest

import cfx_lib


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, cfx_lib; print([m for m in ('torch', 'diffusers', 'timm', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_names_of_the_package():
    from cfx_lib import PGD, DiME

    assert (DiME.__module__, PGD.__module__) == ("cfx_lib.methods.dime", "cfx_lib.methods.baselines")
    assert {"DiME", "PGD", "zoo", "worlds", "metrics"} <= set(dir(cfx_lib))
    assert all(hasattr(cfx_lib, name) for name in ("zoo", "worlds", "metrics", "diffusion"))
    with pytest.raises(AttributeError, match="has no attribute 'Dime'"):
        _ = cfx_lib.Dime


def test_dvce_and_its_baselines_are_exported():
    from cfx_lib import DVCE, SVCE, BlendedDiffusion
    from cfx_lib.methods import baselines

    names = {"DVCE": DVCE, "SVCE": SVCE, "BlendedDiffusion": BlendedDiffusion}
    assert all(name in dir(cfx_lib) and method.__name__ == name for name, method in names.items())
    assert baselines.SVCE is SVCE and baselines.BlendedDiffusion is BlendedDiffusion


def test_ldce_is_exported():
    from cfx_lib import LDCE

    assert LDCE.__name__ == "LDCE" and "LDCE" in dir(cfx_lib)
    assert {"LatentDiffusion", "latent_diffusion"} <= set(dir(cfx_lib.zoo))
