"""`python -m tests.faults.few_files serve`: the service where a process may open 1,024 files."""

from __future__ import annotations

import resource

if __name__ == "__main__":
    from service.__main__ import main

    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    main()
