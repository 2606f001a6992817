"""SAM-MI ("A Mask-Injected Framework for Enhancing Open-Vocabulary Semantic Segmentation with SAM")."""
