"""What to evaluate: plans as frozen values, arguments in one normal form, points, and how work is cut."""
