"""Columns of the arrays that the sculptor and the camera pass to the tracer."""

ELLIPSOID, BOX, CYLINDER, TORUS, PRISM, CAPSULE = range(6)

# A primitive; ROTATION takes its local axes to the object's, row by row.
KIND, CENTER, ROTATION, SIZE, RGB, MAIN, BLEND, CARVE, BOUND = 0, 1, 4, 13, 19, 22, 23, 24, 25
COLUMNS = 26
MAX_PRIMITIVES = 60  # a ray's candidates are bits of one integer

# Paint of an instance: pattern, colour, second colour, direction across stripes, offset of the pattern.
PATTERN, PAINT, TRIM, AXIS, OFFSET = 0, 1, 4, 7, 10
LOOK_COLUMNS = 13
PLAIN, SPOTS, STRIPES, WOODEN, SNOW, GOLDEN, BRICKS = range(7)

# An image: which instance, the camera (TURN's rows are its right, down and forward), and the light.
INSTANCE, EYE, TURN, TAN, SUN, AMBIENT, SKY, SUN_LEVEL = 0, 1, 4, 13, 14, 17, 18, 19
VIEW_COLUMNS = 20
