"""Device meshes, the logical-axis table and multi-host functions."""
