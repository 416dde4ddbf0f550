"""How good the student is: who is compared, by whom, and what that gave. Where it is shown belongs to `report`."""
