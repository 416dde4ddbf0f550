"""What is bound to fail, before anything is loaded: every rank measures, rank 0 judges, a line says what to mend.

Measurements are small dataclasses. What judges them is a function of all ranks' measurements alone. Checks of what a
room itself reads or writes belong into that room, and are called from here.
"""
