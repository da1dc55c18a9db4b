"""Privacy accounting: what a run released about its patients (`mechanisms`), and what that costs (`rdp`, `pld`, `calibration`)."""
