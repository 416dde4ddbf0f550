"""How good the student is: judges, distances and what they gave. Where it is shown belongs to `report`."""
