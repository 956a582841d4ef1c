"""`python -m tfmot_ops.cli`: the command without the script that an installation adds."""

from tfmot_ops.cli.app import main

main()
