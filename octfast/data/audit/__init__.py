"""What is wrong with a data set: unreadable, doubtful, duplicated, marked or leaking scans."""
