extension Int {
    /// The whole part of a number, or the nearest that there is: modelled figures may be beyond any
    /// integer. 0 for what is not a number.
    package init(clamping value: Double) {
        if value.isNaN {
            self = 0
        } else if value >= 0x1p63 {
            self = .max
        } else if value <= -0x1p63 {
            self = .min
        } else {
            self = Int(value)
        }
    }
}
