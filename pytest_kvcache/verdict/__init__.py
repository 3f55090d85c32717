"""From rows to a verdict. Pure: no pytest, and no input or output but the baseline file."""
