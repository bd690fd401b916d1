"""From tiles to the map: a whole scene, classified by a sliding window, written as a Cloud-Optimised GeoTIFF."""
