"""Compilation for absent devices: topologies, HLO and costs."""
