"""python -m hw_validation: the same as the command `moesim-hw`."""

from hw_validation.command.main import main

main()
