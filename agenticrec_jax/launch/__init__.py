"""Launchers: the files and commands that start a program on pods and clusters."""
