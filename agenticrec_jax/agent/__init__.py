"""Prompts, protocol, trajectories and the scripted agent."""
