"""A teacher's folder, checked before it is loaded, and the families of teachers; no objective and no engine."""
