"""``python -m hesse`` runs the demo."""

import sys

from .demo import main

sys.exit(main())
