"""Many runs of one configuration, side by side: what a study is, its processes, what comes of it."""
