"""Where programs are attached: interfaces by tcx or clsact, and cgroups."""
