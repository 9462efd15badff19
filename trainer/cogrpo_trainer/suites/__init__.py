"""The published suites of `cogrpo evaluate`, a file each; run.py goes through one of them.

pictures.py makes and keeps pictures, scores.py their scores, report.py says what came out.
"""

IMAGE_REWARD, HPSV2, GENEVAL, DPG = "imagereward", "hpsv2", "geneval", "dpg"
PUBLISHED = (IMAGE_REWARD, HPSV2, GENEVAL, DPG)
