"""Benchmarks; a package, so that it is found before one of this name that a dependency installs (Opacus does)."""
