"""The papers' tables by one command: a graph of steps that resumes."""
