"""The analytical cost model: work per node, roofline per device, time per operating point."""
