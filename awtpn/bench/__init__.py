"""`awtpn bench`: how fast this machine trains, where the time goes, and beside what."""
