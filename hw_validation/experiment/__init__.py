"""What an experiment file asks to be measured: servers, runs, commands and their cost."""
