"""The words of each command, by what the commands are for."""
