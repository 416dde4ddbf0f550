#!/usr/bin/env python3
"""What has to work for any user on a read-only root, with nothing writable but the caches and /tmp."""

import os
import runpy
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

EXTENSION = """
#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "compiled", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_compiled(void) { return PyModule_Create(&definition); }
"""


def main() -> None:
    """Ask every launcher for its help, load the libraries, and compile as Triton does for its first kernel."""
    os.chdir(Path(__file__).parent.parent)
    for launcher in sorted(Path("launchers").rglob("*.py")):
        sys.argv = [str(launcher), "--help"]
        try:
            with redirect_stdout(StringIO()):
                runpy.run_path(str(launcher), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    import deepspeed  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import wandb  # noqa: F401
    from triton.runtime.build import compile_module_from_src

    import ladd_dist.drawing.synthesis
    import ladd_dist.training.trainer  # noqa: F401

    compile_module_from_src(EXTENSION, "compiled")
    print(f"the image works for {os.getuid()}:{os.getgid()}")


if __name__ == "__main__":
    main()
