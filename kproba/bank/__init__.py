"""The prototype bank, and how it decides together with the network.

`settings`, `feature_maps`, `moments`, `bank` and `build` hold the class statistics;
`decision` and `fusion` combine them with the network, in the one place that the test
(`predictor`), the teacher (`teacher`) and the pseudo labels (`kproba.methods`) use.
`description` is what a step predicts with.
"""
