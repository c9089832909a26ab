from benchmarks.report.page import main

raise SystemExit(main())
