"""Packages that not everybody has, each behind one module: imported only when they are asked for."""
