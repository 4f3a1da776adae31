"""Click sessions, simulated annotators, inference runtimes and export."""
