"""The processes of one job: what started them, how they meet, what they tell one another, where time goes."""
