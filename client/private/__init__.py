"""DP-SGD by patient: cryptographic sampling and noise, clipping of each patient's gradient, public constants."""
