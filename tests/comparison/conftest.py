"""Where pages.py is, which reads a page."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "reporting"))
