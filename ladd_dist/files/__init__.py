"""Files and folders on disks that several machines share: written whole, checked, replaced, held by one job.

What is in them belongs to the rooms that write them.
"""
