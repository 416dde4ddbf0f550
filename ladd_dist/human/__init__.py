"""What people prefer: a blind page that asks them, and what their answers say of the models.

Who draws the pictures, and distances that need no people, are the business of the rooms above.
"""
