"""Systems side by side: several finished runs, over seeds."""
