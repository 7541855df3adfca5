"""`python -m deploy_gates`: the command, where its script is not on the path."""

from deploy_gates.cli import main

raise SystemExit(main())
