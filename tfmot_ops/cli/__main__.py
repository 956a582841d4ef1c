"""`python -m tfmot_ops.cli`: the command `tfmot-ops` for an environment whose `bin` folder is not on PATH."""

from tfmot_ops.cli.app import main

main()
