"""``python -m structprune`` is ``structprune-report``."""

import sys

from structprune.report.cli import main

sys.exit(main())
