"""`python -m p2o …` is `p2o …`, for launchers that start modules."""

import sys

from p2o.cli import main

sys.exit(main())
