"""The command `moesim-hw`: one verb a file."""
